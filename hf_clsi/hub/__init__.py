"""Turns scores and ledgers into what people read: tables, figures and reports."""
