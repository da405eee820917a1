"""A generator of real BlockMoving data: simulated, drawn and explained."""
