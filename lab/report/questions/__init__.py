"""A section of the report each: from the evidence to an answer worded by it."""

from lab.report.questions.autopsy import autopsy
from lab.report.questions.distribution import distribution
from lab.report.questions.growth import growth
from lab.report.questions.layers import layers
from lab.report.questions.sameness import sameness
from lab.report.questions.table import table
from lab.report.questions.zeros import zeros

SECTIONS = (table, autopsy, layers, distribution, zeros, sameness, growth)

__all__ = ["SECTIONS"]
