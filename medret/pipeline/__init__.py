"""The job: Ray Data from an archive's objects to Parquet shards, Ray tasks from shards to indices, then publication.

Only this folder imports ray. What is computed for a volume or an index stands in other folders; what is decided for a
run (plan, layout, gates) stands here, in functions that start nothing. `run.run_index` is the entrance. This file
imports nothing, so that a worker loads only the stage it runs.
"""
