# # own_network
