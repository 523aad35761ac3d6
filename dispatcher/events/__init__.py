"""Events: what one is, the forms it has on the wire, the limits it obeys, and how it is told from another."""
