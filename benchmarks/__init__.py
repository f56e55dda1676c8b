"""What an event-sourced session costs, each figure beside the raw driver doing the same durable work.

`python -m benchmarks` runs every question and prints one table; `--quick` takes less than a minute.
No absolute time stands alone: what counts is the ratio to the floor measured in the same run.
"""
