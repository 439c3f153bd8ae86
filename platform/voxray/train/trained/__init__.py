"""A trained run, used: loaded, evaluated, predicted with, exported."""
