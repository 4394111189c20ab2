# # one_period
