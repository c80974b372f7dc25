"""What runs and studies are, and what rests on nothing else."""
