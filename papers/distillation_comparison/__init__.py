"""Eight distillation papers and their baselines in one table: one teacher, student and budget.

It has no equations of its own: `recipe.method` calls each paper's recipe on the same setting.
"""
