"""What a card does for workers: checked by NVML, and measured beside bare loops on it.

The check (``benchmarks/gpu/check``): ``check_installation`` sees to packages, ``check`` is the
command, ``check_binding`` and ``check_memory`` are what it looks at, of a ``check_subject`` each:
servers by ``pools``, what NVML says by ``card_memory``, what ``frameworks`` are here; ``verdicts``
are its lines.

The benchmark (``batchyard bench gpu``): ``bench`` runs ``transfers``, ``offline``, ``online`` and
``sharing`` over ``subjects``, by ``options``, as far as ``tolerance`` has it. References are
``bare`` (``bare_loop`` its process) and ``transfer_loop``; the ``server`` is fed by ``feeding``
(``feeder`` its processes); ``guarded`` is how processes answer, ``card_facts`` what a card did
meanwhile.
"""
