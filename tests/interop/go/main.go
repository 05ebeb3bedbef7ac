// Command driver runs one upload with a Go client, as the case on stdin asks.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// A Case is what the tests ask for: one line of JSON on stdin.
type Case struct {
	Client       string            `json:"client"`
	Action       string            `json:"action"`
	Endpoint     string            `json:"endpoint"`
	File         string            `json:"file"`
	Metadata     map[string]string `json:"metadata"`
	ChunkSize    int64             `json:"chunk_size"`
	Parallel     int               `json:"parallel"`
	Deferred     bool              `json:"deferred"`
	WithCreation bool              `json:"with_creation"`
	Override     bool              `json:"override"`
	Checksum     string            `json:"checksum"`
	Retry        bool              `json:"retry"`
	Store        string            `json:"store"`
	Resume       bool              `json:"resume"`
	StopAt       int64             `json:"stop_at"`
}

// A Result is what came of it: one line of JSON on stdout.
type Result struct {
	URL     string `json:"url"`
	Error   string `json:"error,omitempty"`
	Aborted bool   `json:"aborted,omitempty"`
}

// Retrying is left to the caller by both clients.
const (
	attempts = 80
	pause    = 150 * time.Millisecond
)

// An abort is a second line on stdin.
type abort struct {
	Abort     bool `json:"abort"`
	Terminate bool `json:"terminate"`
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	var wanted Case
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &wanted) != nil {
		fmt.Fprintln(os.Stderr, "no case on stdin")
		os.Exit(2)
	}
	ctx, cancel := context.WithCancel(context.Background())
	asked := abort{}
	go func() {
		for lines.Scan() {
			if json.Unmarshal(lines.Bytes(), &asked) == nil && asked.Abort {
				cancel()
			}
		}
	}()
	var run func(context.Context, Case) (string, error)
	switch wanted.Client {
	case "tusgo":
		run = withTusgo
	case "go-tus":
		run = withGoTus
	default:
		fmt.Fprintf(os.Stderr, "no such client: %q\n", wanted.Client)
		os.Exit(2)
	}
	result := Result{}
	var err error
	result.URL, err = run(ctx, wanted)
	switch {
	case ctx.Err() != nil:
		result.Aborted = true
		if asked.Terminate {
			err = terminateWithTusgo(wanted, result.URL)
		} else {
			err = nil
		}
	case wanted.StopAt > 0 && err == nil:
		result.Aborted = true
	}
	if err != nil {
		result.Error = err.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(map[string]Result{"result": result})
}

// remember keeps an upload's address for a later process; recall brings it back.
func remember(path, url string) error {
	if path == "" {
		return nil
	}
	return os.WriteFile(path, []byte(url), 0o600)
}

func recall(path string) (string, error) {
	url, err := os.ReadFile(path)
	return string(url), err
}
