"""Graphs of TensorFlow, small ones, of all that matters to what is told of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

GRAPHS: dict[str, Callable[[Any], Any]] = {}


def _graph(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    GRAPHS[function.__name__] = function
    return function


def _reference(tf: Any) -> Any:
    return tf.compat.v1.Variable(1.0, use_resource=False)


def _resource(tf: Any) -> Any:
    return tf.compat.v1.Variable(1.0, use_resource=True)


@_graph
def arithmetic(tf: Any) -> Any:
    return tf.constant(1.0) + 2.0


@_graph
def random_numbers(tf: Any) -> Any:
    return tf.random.uniform((2,)) + tf.raw_ops.RandomStandardNormal(shape=[2], dtype=tf.float32)


@_graph
def reads_reference(tf: Any) -> Any:
    return _reference(tf) + 1.0


@_graph
def reads_resource(tf: Any) -> Any:
    return _resource(tf).read_value() + 1.0


@_graph
def assigns_reference(tf: Any) -> Any:
    return tf.compat.v1.assign(_reference(tf), 2.0) * 3.0


@_graph
def assigns_resource(tf: Any) -> Any:
    return _resource(tf).assign_add(2.0) * 3.0


@_graph
def assigns_beside(tf: Any) -> Any:
    """In the graph, but not needed for what is fetched."""
    variable = _resource(tf)
    variable.assign(2.0)
    return variable.read_value()


@_graph
def assigns_before(tf: Any) -> Any:
    """By a control dependency alone."""
    with tf.control_dependencies([_resource(tf).assign(2.0)]):
        return tf.constant(1.0) + 1.0


@_graph
def scatters(tf: Any) -> Any:
    variable = tf.compat.v1.Variable([1.0, 2.0], use_resource=True)
    return variable.scatter_nd_update([[0]], [3.0])


@_graph
def trains(tf: Any) -> Any:
    variable = _resource(tf)
    step = tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=0.1, delta=1.0)
    with tf.control_dependencies([step]):
        return tf.constant(1.0) + 1.0


@_graph
def calls_a_reader(tf: Any) -> Any:
    variable = _resource(tf)
    return tf.function(lambda x: variable.read_value() + x)(1.0)


@_graph
def calls_a_writer(tf: Any) -> Any:
    variable = _resource(tf)
    inner = tf.function(lambda x: variable.assign_add(x))
    return tf.function(lambda x: inner(x) + 1.0)(1.0)


@_graph
def branches_to_a_writer(tf: Any) -> Any:
    variable = _resource(tf)
    condition = tf.compat.v1.placeholder(tf.bool, ())

    def branch(x: Any) -> Any:
        return tf.cond(condition, lambda: variable.assign_add(x), lambda: x)

    return tf.function(branch)(1.0)


@_graph
def switches_to_a_writer(tf: Any) -> Any:
    """``Case`` has a list of functions, where ``If`` has two."""
    variable = _resource(tf)
    index = tf.compat.v1.placeholder(tf.int32, ())

    def switch(x: Any) -> Any:
        return tf.switch_case(index, [lambda: x, lambda: variable.assign_add(x)])

    return tf.function(switch)(1.0)


@_graph
def looks_up(tf: Any) -> Any:
    return _table(tf).lookup(tf.constant(["a"]))


@_graph
def inserts(tf: Any) -> Any:
    table = _table(tf)
    with tf.control_dependencies([table.insert(tf.constant(["a"]), tf.constant([1], tf.int64))]):
        return tf.constant(1.0) + 1.0


def _table(tf: Any) -> Any:
    return tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)


@_graph
def dequeues(tf: Any) -> Any:
    return tf.queue.FIFOQueue(2, [tf.float32]).dequeue()


def _input(tf: Any) -> Any:
    return tf.compat.v1.placeholder(tf.float32, (None, 4))


@_graph
def multiplies(tf: Any) -> Any:
    return tf.nn.softmax(tf.matmul(_input(tf), tf.ones((4, 3))) + 1.0)


@_graph
def multiplies_in_function(tf: Any) -> Any:
    inner = tf.function(lambda x: tf.nn.relu(x) * 2.0)
    return tf.function(lambda x: tf.reduce_mean(inner(x), axis=1))(_input(tf))


@_graph
def sorts(tf: Any) -> Any:
    return tf.sort(_input(tf), axis=1)


@_graph
def finds_the_best(tf: Any) -> Any:
    return tf.math.top_k(_input(tf), 2).indices


@_graph
def gathers(tf: Any) -> Any:
    """It checks an index, and uses it later."""
    return tf.gather(tf.range(10.0), tf.compat.v1.placeholder(tf.int32, (None,)))


@_graph
def sorts_in_function(tf: Any) -> Any:
    inner = tf.function(lambda x: tf.math.top_k(x, 2).values)
    return tf.function(lambda x: inner(x) + 1.0)(_input(tf))


@_graph
def sorts_in_branch(tf: Any) -> Any:
    condition = tf.compat.v1.placeholder(tf.bool, ())

    def branch(x: Any) -> Any:
        return tf.cond(condition, lambda: tf.sort(x), lambda: x)

    return tf.function(branch)(_input(tf))


@_graph
def sorts_beside(tf: Any) -> Any:
    """In the graph, but not needed for what is fetched."""
    x = _input(tf)
    tf.sort(x)
    return x * 2.0


@_graph
def sorts_before(tf: Any) -> Any:
    """By a control dependency alone."""
    x = _input(tf)
    with tf.control_dependencies([tf.sort(x)]):
        return x * 2.0
