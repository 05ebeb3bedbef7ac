package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/bdragon300/tusgo"
)

func tusgoClient(endpoint string) (*tusgo.Client, error) {
	base, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	return tusgo.NewClient(http.DefaultClient, base), nil
}

func withTusgo(ctx context.Context, wanted Case) (string, error) {
	client, err := tusgoClient(wanted.Endpoint)
	if err != nil {
		return "", err
	}
	file, err := os.Open(wanted.File)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	if wanted.Parallel > 0 {
		return tusgoParallel(ctx, client, wanted, file, info.Size())
	}

	upload := tusgo.Upload{}
	switch {
	case wanted.Resume:
		upload.RemoteSize = info.Size()
		if upload.Location, err = recall(wanted.Store); err != nil {
			return "", err
		}
	case wanted.WithCreation:
		first := make([]byte, min(info.Size(), 1<<20))
		if _, err = io.ReadFull(file, first); err != nil {
			return "", err
		}
		_, _, err = client.CreateUploadWithData(
			&upload, first, info.Size(), false, wanted.Metadata)
	case wanted.Deferred:
		_, err = client.CreateUpload(&upload, tusgo.SizeUnknown, false, wanted.Metadata)
	default:
		_, err = client.CreateUpload(&upload, info.Size(), false, wanted.Metadata)
	}
	if err != nil {
		return upload.Location, err
	}
	if err = remember(wanted.Store, upload.Location); err != nil {
		return upload.Location, err
	}
	stream := tusgoStream(ctx, client, &upload, wanted)
	if wanted.Deferred {
		upload.RemoteSize = info.Size()
		stream.SetUploadSize = true
	}
	return upload.Location, tusgoSend(ctx, stream, file, wanted)
}

func tusgoStream(
	ctx context.Context, client *tusgo.Client, upload *tusgo.Upload, wanted Case,
) *tusgo.UploadStream {
	stream := tusgo.NewUploadStream(client, upload).WithContext(ctx)
	switch wanted.Checksum {
	case "header":
		stream = stream.WithChecksumAlgorithm("sha1")
	case "trailer":
		stream = stream.WithChecksumAlgorithm("sha256")
	}
	stream.ChunkSize = tusgo.NoChunked
	if wanted.ChunkSize > 0 {
		stream.ChunkSize = wanted.ChunkSize
	}
	return stream
}

// tusgoSend is what its documentation advises: on an error, ask for the offset and go on there.
func tusgoSend(
	ctx context.Context, stream *tusgo.UploadStream, file io.ReadSeeker, wanted Case,
) error {
	synced := !wanted.Resume
	for attempt := 0; ; attempt++ {
		var err error
		if !synced {
			_, err = stream.Sync()
		}
		if err == nil {
			synced = true
			if _, err = file.Seek(stream.Tell(), io.SeekStart); err == nil {
				err = tusgoRead(stream, file)
			}
		}
		if err == nil && stream.Tell() == stream.Len() {
			return nil
		}
		if err == nil {
			err = errors.New("the stream ended early")
		}
		if ctx.Err() != nil || !wanted.Retry || attempt == attempts {
			return err
		}
		stream.ForceClean()
		synced = false
		if attempt > 0 {
			time.Sleep(pause)
		}
	}
}

// tusgoRead survives what tusgo does when a server refuses with a body of less than 256 bytes:
// it panics with io.ErrUnexpectedEOF.
func tusgoRead(stream *tusgo.UploadStream, file io.Reader) (err error) {
	defer func() {
		if caught := recover(); caught != nil {
			err = fmt.Errorf("tusgo panicked: %v (response: %v)", caught, stream.LastResponse)
		}
	}()
	_, err = stream.ReadFrom(file)
	return err
}

func tusgoParallel(
	ctx context.Context, client *tusgo.Client, wanted Case, file io.ReaderAt, size int64,
) (string, error) {
	if _, err := client.UpdateCapabilities(); err != nil {
		return "", err
	}
	parts := make([]tusgo.Upload, wanted.Parallel)
	failures := make([]error, wanted.Parallel)
	var group sync.WaitGroup
	for i := range parts {
		from, to := size*int64(i)/int64(len(parts)), size*int64(i+1)/int64(len(parts))
		group.Add(1)
		go func() {
			defer group.Done()
			if _, err := client.CreateUpload(&parts[i], to-from, true, nil); err != nil {
				failures[i] = err
				return
			}
			stream := tusgoStream(ctx, client, &parts[i], wanted)
			section := io.NewSectionReader(file, from, to-from)
			failures[i] = tusgoSend(ctx, stream, section, wanted)
		}()
	}
	group.Wait()
	if err := errors.Join(failures...); err != nil {
		return "", err
	}
	final := tusgo.Upload{}
	_, err := client.ConcatenateUploads(&final, parts, wanted.Metadata)
	return final.Location, err
}

func terminateWithTusgo(wanted Case, location string) error {
	client, err := tusgoClient(wanted.Endpoint)
	if err != nil {
		return err
	}
	_, err = client.DeleteUpload(tusgo.Upload{Location: location})
	return err
}
