"""Verifying: cases, engines, the table of outcomes, and the attestation."""
