"""Demonstrations into datasets: experts with noise or taking over, recorded, staged and assembled."""
