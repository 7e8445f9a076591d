"""Everything that observes a run: metrics, console, goodput, watchdog, profiler, preemption."""
