"""A robot's side: the client of a server, control loop, chunk strategies, action guard. No torch."""
