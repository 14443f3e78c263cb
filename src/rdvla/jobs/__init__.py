"""The one engine that plays episodes in other processes: repeats what broke, gives up with a reason."""
