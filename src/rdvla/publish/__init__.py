"""Policies and datasets onto the Hugging Face hub: what is uploaded, and the card that says where it comes from."""
