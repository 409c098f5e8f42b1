"""A module per section of the report: from the evidence to figures and an outcome.

The words are in templates/questions, a file per section.
"""

from lab.report.questions.broke import broke
from lab.report.questions.q1_layers import layers
from lab.report.questions.q2_distribution import distribution
from lab.report.questions.q3_zeros import zeros
from lab.report.questions.q4_sameness import sameness
from lab.report.questions.q5_growth import growth
from lab.report.questions.readme_table import table

SECTIONS = (table, broke, layers, distribution, zeros, sameness, growth)
