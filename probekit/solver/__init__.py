"""Penalty paths of multinomial logistic regression with certificates."""
