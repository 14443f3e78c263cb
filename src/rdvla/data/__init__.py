"""Datasets: statistics, chunks of actions, LeRobotDataset v3.0 and the image path."""
