// The load generator: what a client in Python is too slow for.
//
// One JSON object on stdin says what to do, the answer is JSON on stdout, one object per line.
// Requests are bytes made beforehand, on kept-alive connections; of an answer no more is read than
// is needed to tell whether it is right.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/url"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Task is what stdin says. Times are in seconds.
type Task struct {
	Mode        string   `json:"mode"`        // rate, latency, slow
	Address     string   `json:"address"`     // host:port
	Connections int      `json:"connections"` // rate, slow
	Seconds     float64  `json:"seconds"`     // latency: 0 is until stdin ends
	Requests    [][]byte `json:"requests"`    // rate, latency: sent in turn
	Status      int      `json:"status"`      // what every answer must have
	Header      string   `json:"header"`      // and this line, "" for none
	Interval    float64  `json:"interval"`    // latency: between two requests; slow: between writes
	Path        string   `json:"path"`        // slow: the creation resource
	Rate        int      `json:"rate"`        // slow: bytes per second and connection
	Step        int      `json:"step"`        // rate: bytes that each appends; 0: none
}

// Result is what comes of rate and latency. Latencies are in milliseconds.
type Result struct {
	Count   int     `json:"count"`
	Errors  int     `json:"errors"`
	Error   string  `json:"error"`
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
	Max     float64 `json:"max"`
}

const patience = 30 * time.Second

// Stands for the offset of an upload to which each request adds Step bytes: in a request for the one
// before it, in what is wanted of its answer for the one after it.
const offset = "{offset}"

func main() {
	stdin := bufio.NewReader(os.Stdin)
	var task Task
	if err := json.NewDecoder(stdin).Decode(&task); err != nil {
		fail(err)
	}
	switch task.Mode {
	case "rate":
		say(rate(task))
	case "latency":
		ended := make(chan struct{})
		if task.Seconds > 0 {
			time.AfterFunc(seconds(task.Seconds), func() { close(ended) })
		} else {
			go func() { io.Copy(io.Discard, stdin); close(ended) }()
		}
		say(latency(task, ended))
	case "slow":
		slow(task)
	default:
		fail(fmt.Errorf("no such mode: %q", task.Mode))
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "load:", err)
	os.Exit(1)
}

func say(value any) {
	if err := json.NewEncoder(os.Stdout).Encode(value); err != nil {
		fail(err)
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// ---------------------------------------------------------------------------------- one connection

type client struct {
	conn   net.Conn
	reader *bufio.Reader
	task   *Task
}

func dial(task *Task) (*client, error) {
	conn, err := net.DialTimeout("tcp", task.Address, patience)
	if err != nil {
		return nil, err
	}
	return &client{conn, bufio.NewReaderSize(conn, 16<<10), task}, nil
}

// Sends a request and reads its answer; returns the value of Location, if there is one.
func (c *client) exchange(request []byte, status int, want string) (string, error) {
	c.conn.SetDeadline(time.Now().Add(patience))
	if _, err := c.conn.Write(request); err != nil {
		return "", err
	}
	return c.answer(bytes.HasPrefix(request, []byte("HEAD ")), status, want)
}

func (c *client) answer(isHead bool, status int, want string) (string, error) {
	line, err := c.reader.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	if len(line) < 12 || string(line[9:12]) != strconv.Itoa(status) {
		return "", fmt.Errorf("expected %d, got %q", status, line)
	}
	length, found, location, chunked := 0, want == "", "", false
	for {
		line, err = c.reader.ReadSlice('\n')
		if err != nil {
			return "", err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case len(name) == 14 && bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return "", err
			}
		case len(name) == 8 && bytes.EqualFold(name, []byte("Location")):
			location = string(value)
		case len(name) == 17 && bytes.EqualFold(name, []byte("Transfer-Encoding")):
			chunked = true
		}
		found = found || len(line) == len(want) && bytes.EqualFold(line, []byte(want))
	}
	if !found {
		return "", fmt.Errorf("no %q in the answer", want)
	}
	for !isHead && (chunked || length > 0) {
		if chunked {
			if line, err = c.reader.ReadSlice('\n'); err != nil {
				return "", err
			}
			size, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 32)
			if err != nil {
				return "", err
			}
			length, chunked = int(size)+2, size > 0 // with the line's end; no trailers
		}
		if _, err := c.reader.Discard(length); err != nil {
			return "", err
		}
		length = 0
	}
	return location, nil
}

// ----------------------------------------------------------------------- as many as possible, rate

func rate(task Task) Result {
	clients := make([]*client, task.Connections)
	for i := range clients {
		c, err := dial(&task)
		if err != nil {
			fail(err)
		}
		defer c.conn.Close()
		clients[i] = c
	}
	var wait sync.WaitGroup
	times := make([][]time.Duration, len(clients))
	failures := make([]error, len(clients))
	start := time.Now()
	end := start.Add(seconds(task.Seconds))
	for i, c := range clients {
		wait.Add(1)
		go func(i int, c *client) {
			defer wait.Done()
			// Each its own requests, where there are enough: two at one upload would measure locks.
			first := i % len(task.Requests)
			next := first
			at := make([]int, len(task.Requests))
			for before := time.Now(); before.Before(end); {
				request, want := task.Requests[next], task.Header
				if task.Step > 0 {
					request = bytes.Replace(request, []byte(offset), strconv.AppendInt(nil, int64(at[next]), 10), 1)
					at[next] += task.Step
					want = strings.Replace(want, offset, strconv.Itoa(at[next]), 1)
				}
				_, err := c.exchange(request, task.Status, want)
				if err != nil {
					failures[i] = err
					return
				}
				after := time.Now()
				times[i] = append(times[i], after.Sub(before))
				before = after
				if next += len(clients); next >= len(task.Requests) {
					next = first
				}
			}
		}(i, c)
	}
	wait.Wait()
	var all []time.Duration
	for _, some := range times {
		all = append(all, some...)
	}
	return summary(all, failures, time.Since(start))
}

// ------------------------------------------------------------------- at a steady pace, for latency

func latency(task Task, ended <-chan struct{}) Result {
	c, err := dial(&task)
	if err != nil {
		fail(err)
	}
	defer c.conn.Close()
	var times []time.Duration
	var failure error
	interval := seconds(task.Interval)
	start := time.Now()
	due := start
	for i := 0; failure == nil; i++ {
		// What waits behind a late answer is late from the moment it was due; our own timer's
		// lateness is not the server's.
		begin := due
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
			begin = time.Now()
		}
		select {
		case <-ended:
			return summary(times, []error{failure}, time.Since(start))
		default:
		}
		_, failure = c.exchange(task.Requests[i%len(task.Requests)], task.Status, task.Header)
		times = append(times, time.Since(begin))
		due = due.Add(interval)
	}
	return summary(times, []error{failure}, time.Since(start))
}

func summary(times []time.Duration, failures []error, took time.Duration) Result {
	result := Result{Count: len(times), Seconds: took.Seconds()}
	for _, err := range failures {
		if err != nil {
			result.Errors++
			result.Error = err.Error()
		}
	}
	sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
	at := func(q float64) float64 {
		if len(times) == 0 {
			return 0
		}
		return float64(times[int(q*float64(len(times)-1)+0.5)].Microseconds()) / 1000
	}
	result.P50, result.P99, result.Max = at(0.5), at(0.99), at(1)
	return result
}

// -------------------------------------------------------------------------- many slow clients, slow

func slow(task Task) {
	length := int(float64(task.Rate) * task.Seconds)
	piece := int(float64(task.Rate) * task.Interval)
	paths := make([]string, task.Connections)
	clients := make([]*client, task.Connections)
	host := "Host: " + task.Address + "\r\nTus-Resumable: 1.0.0\r\n"
	create := fmt.Sprintf("POST %s HTTP/1.1\r\n%sUpload-Length: %d\r\nContent-Length: 0\r\n\r\n",
		task.Path, host, length)
	for i := range clients {
		c, err := dial(&task)
		if err != nil {
			fail(err)
		}
		location, err := c.exchange([]byte(create), 201, "")
		if err != nil {
			fail(err)
		}
		parsed, err := url.Parse(location)
		if err != nil {
			fail(err)
		}
		paths[i], clients[i] = parsed.Path, c
	}
	say(map[string]any{"event": "connected"})

	var sent, whole int64
	var failed sync.Map
	var wait sync.WaitGroup
	begin := time.Now()
	for i := range clients {
		wait.Add(1)
		go func(i int) {
			defer wait.Done()
			defer clients[i].conn.Close()
			if err := trickle(clients[i], paths[i], host, begin, length, piece, &sent); err != nil {
				failed.Store(i, err)
				return
			}
			atomic.AddInt64(&whole, 1)
		}(i)
	}
	done := make(chan struct{})
	go func() { wait.Wait(); close(done) }()
	ticker := time.NewTicker(100 * time.Millisecond)
	for {
		select {
		case <-ticker.C:
			say(map[string]any{"event": "tick", "bytes": atomic.LoadInt64(&sent)})
			continue
		case <-done:
		}
		break
	}
	var first []string
	failed.Range(func(_, err any) bool {
		first = append(first, err.(error).Error())
		return len(first) < 3
	})
	say(map[string]any{
		"event": "done", "bytes": atomic.LoadInt64(&sent), "whole": whole,
		"error": strings.Join(first, "; "),
	})
}

func trickle(
	c *client, path, host string, begin time.Time, length, piece int, sent *int64,
) error {
	interval := seconds(c.task.Interval)
	due := begin.Add(time.Duration(rand.Int63n(int64(interval))))
	head := fmt.Sprintf("PATCH %s HTTP/1.1\r\n%sUpload-Offset: 0\r\nContent-Length: %d\r\n"+
		"Content-Type: application/offset+octet-stream\r\n\r\n", path, host, length)
	buffer := make([]byte, piece)
	time.Sleep(time.Until(due))
	if _, err := c.conn.Write([]byte(head)); err != nil {
		return err
	}
	for left := length; left > 0; {
		n := min(left, piece)
		c.conn.SetWriteDeadline(time.Now().Add(patience))
		if _, err := c.conn.Write(buffer[:n]); err != nil {
			return err
		}
		atomic.AddInt64(sent, int64(n))
		left -= n
		due = due.Add(interval)
		time.Sleep(time.Until(due))
	}
	c.conn.SetReadDeadline(time.Now().Add(patience))
	_, err := c.answer(false, 204, "Upload-Offset: "+strconv.Itoa(length))
	return err
}
