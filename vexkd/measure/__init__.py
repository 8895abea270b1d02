"""What is known of a model or machine without scores: size, speed, memory, cost, readiness, what masks attend to."""
