"""The data preparation engine: pure jobs, run in a process pool or on Apache Beam, restartable after a kill."""
