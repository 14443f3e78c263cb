"""Turns the logs of evaluations into one self-contained web page."""
