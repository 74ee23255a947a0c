"""Settings of the methods for verl's hydra: `hydra.searchpath=[pkg://rl_think_ext.verl.config] +rl_think=rlp`."""
