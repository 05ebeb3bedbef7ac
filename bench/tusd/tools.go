//go:build tools

// Package tools pins tusd and all that it is built from, in go.mod and go.sum.
package tools

import _ "github.com/tus/tusd/v2/cmd/tusd"
