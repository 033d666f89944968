"""What leaves this machine: tables, figures and reports for people, plain checkpoints for other engines."""
