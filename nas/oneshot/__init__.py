"""Differentiable supernets: one bilevel loop, many relaxations, derivation."""
