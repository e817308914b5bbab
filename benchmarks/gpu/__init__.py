"""What ``scripts/gpu`` runs: checks and timings on a GPU, each part in a process of its own."""
