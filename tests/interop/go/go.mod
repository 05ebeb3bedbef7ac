module tidegate.invalid/interop

go 1.22.0

require (
	github.com/bdragon300/tusgo v0.1.2
	github.com/eventials/go-tus v0.0.0-20220610120217-05d0564bb571
)
