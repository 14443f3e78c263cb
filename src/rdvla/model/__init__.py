"""The recurrent-depth policy network: vision towers, language model, Prelude, Recurrent Core, Coda."""
