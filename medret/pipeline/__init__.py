"""The job: Ray Data from an archive's objects to Parquet shards, Ray tasks from shards to indices, then publication.

Only this folder imports ray. Everything that it computes with is a pure function of another folder. `run.run_index` is
the entrance. This file imports nothing, so that a worker loads only the stage it runs.
"""
