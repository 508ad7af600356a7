"""Beliefs about coefficients: N(m, S) in U D U' form, and how they learn, forget and are served."""
