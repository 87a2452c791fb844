"""The server's own broker in virtual time, against simulated devices: see ``docs/overload.md``."""

from batchyard.benchmarks.load.plan import Constant, MixEntry, Poisson, Ramp, Steps, Trace
from batchyard.benchmarks.simulation.arrivals import Bursts, Gamma
from batchyard.benchmarks.simulation.result import Outcome, SimulationResult
from batchyard.benchmarks.simulation.scenario import (
    Overheads,
    SimulatedModel,
    Traffic,
    Workers,
)
from batchyard.benchmarks.simulation.service_times import (
    ConstantTime,
    Drift,
    Gaussian,
    LinearTime,
    LogNormal,
    Outliers,
    TableTime,
)
from batchyard.benchmarks.simulation.simulate import simulate

__all__ = [
    "Bursts",
    "Constant",
    "ConstantTime",
    "Drift",
    "Gamma",
    "Gaussian",
    "LinearTime",
    "LogNormal",
    "MixEntry",
    "Outcome",
    "Outliers",
    "Overheads",
    "Poisson",
    "Ramp",
    "SimulatedModel",
    "SimulationResult",
    "Steps",
    "TableTime",
    "Trace",
    "Traffic",
    "Workers",
    "simulate",
]
