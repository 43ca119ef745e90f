"""``costspan simulate``: a scenario played on a virtual clock, and every analysis run over what it left."""
