"""What running part of a TensorFlow graph does: to state, and with inputs that change."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

# Operations that write state which outlives the call. Random generators are left out: what they
# change is not what a caller means by state.
_WRITERS = re.compile(
    r"(Assign|AssignAdd|AssignSub|AssignVariableOp|AssignAddVariableOp|AssignSubVariableOp"
    r"|(Resource|)(Scatter(Nd|)(Add|Sub|Mul|Div|Min|Max|Update)|Apply\w+|SparseApply\w+"
    r"|StridedSliceAssign)|CountUpTo|ResourceCountUpTo"
    r"|(LookupTable(Insert|Remove|Import)|QueueEnqueue\w*|QueueDequeue\w*|Barrier\w+)(V2|)"
    r"|Stage|Unstage|MapStage|MapUnstage)"
)


# Operations that give the same kind of answer whatever becomes of their inputs meanwhile: they
# read each value for itself. Others may check a value and use it later (an index), or rely on an
# order that they saw (a sort): of inputs that change while they are read they crash.
_PLAIN = re.compile(
    r"(Abs|Add|AddN|AddV2|All|Any|ArgMax|ArgMin|Atan|Atan2|AvgPool|AvgPool3D|BatchMatMul|"
    r"BatchMatMulV2|BatchMatMulV3|BiasAdd|BroadcastTo|Cast|Ceil|ClipByValue|Concat|"
    r"ConcatV2|Const|Conv2D|Conv3D|Cos|DepthwiseConv2dNative|Div|DivNoNan|Elu|EnsureShape|"
    r"Equal|Erf|Exp|ExpandDims|Expm1|Fill|Floor|FloorDiv|FloorMod|FusedBatchNorm|"
    r"FusedBatchNormV2|FusedBatchNormV3|Greater|GreaterEqual|Identity|IdentityN|Inv|"
    r"IsFinite|IsInf|IsNan|L2Loss|LeakyRelu|Less|LessEqual|Log|Log1p|LogSoftmax|"
    r"LogicalAnd|LogicalNot|LogicalOr|MatMul|Max|MaxPool|MaxPool3D|MaxPoolV2|Maximum|Mean|"
    r"Min|Minimum|MirrorPad|Mul|MulNoNan|Neg|NoOp|NotEqual|OnesLike|Pack|Pad|PadV2|"
    r"PartitionedCall|Placeholder|PlaceholderWithDefault|Pow|Prod|Rank|ReadVariableOp|"
    r"RealDiv|Reciprocal|Relu|Relu6|Reshape|ResizeBilinear|ResizeNearestNeighbor|Restore|"
    r"RestoreV2|Rint|Round|Rsqrt|SaveV2|Select|SelectV2|Selu|Shape|Sigmoid|Sign|Sin|Size|"
    r"Slice|Softmax|Softplus|Softsign|Split|SplitV|Sqrt|Square|SquaredDifference|Squeeze|"
    r"StatefulPartitionedCall|StopGradient|StridedSlice|Sub|Sum|Swish|Tanh|Tile|Transpose|"
    r"Unpack|VarHandleOp|VarIsInitializedOp|Variable|VariableV2|VariableShape|Xdivy|"
    r"ZerosLike|_Arg|_Retval)"
)


def writes_state(graph_def: Any, fetches: Iterable[str]) -> bool:
    """Whether computing ``fetches`` (tensor names) runs an operation that writes state.

    ``graph_def`` is a ``GraphDef`` with its function library.
    """
    return any(_WRITERS.fullmatch(operation) for operation in _operations(graph_def, fetches))


def bears_changing_inputs(graph_def: Any, fetches: Iterable[str]) -> bool:
    """Whether computing ``fetches`` does no harm when the inputs change meanwhile."""
    functions = {f.signature.name for f in graph_def.library.function}
    operations = _operations(graph_def, fetches) - functions
    return all(_PLAIN.fullmatch(operation) for operation in operations)


def _operations(graph_def: Any, fetches: Iterable[str]) -> set[str]:
    """The operations that computing ``fetches`` runs, in functions too."""
    nodes = {node.name: node for node in graph_def.node}
    functions = {f.signature.name: f.node_def for f in graph_def.library.function}
    operations: set[str] = set()
    seen_functions: set[str] = set()

    def visit(node: Any) -> None:
        operations.add(node.op)
        called = [attr.func.name for attr in node.attr.values() if attr.HasField("func")]
        called += [f.name for attr in node.attr.values() for f in attr.list.func]
        called.append(node.op)
        for name in called:
            if name in functions and name not in seen_functions:
                seen_functions.add(name)
                for inner in functions[name]:
                    visit(inner)

    seen: set[str] = set()
    pending = [_node_name(fetch) for fetch in fetches]
    while pending:
        name = pending.pop()
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        visit(nodes[name])
        pending.extend(map(_node_name, nodes[name].input))
    return operations


def _node_name(tensor: str) -> str:
    """``"a"`` of ``"a:0"`` and of the control input ``"^a"``."""
    return tensor.removeprefix("^").partition(":")[0]
