"""Passes as jobs of Slurm, through submitit. Imported only for ``--launcher slurm``.

The results folder must lie on a file system that all nodes share: a job and the driver talk through files
there. The driver is the only one that writes records and artifacts.
"""
