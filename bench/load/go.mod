module tidegate.invalid/bench/load

go 1.21
