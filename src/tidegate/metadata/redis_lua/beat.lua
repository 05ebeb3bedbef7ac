stay_alive()
