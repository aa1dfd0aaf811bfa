"""What several tests share: toy workloads, synthetic runs, tiny models and pipelines."""
