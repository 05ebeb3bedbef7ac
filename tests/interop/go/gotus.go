package main

import (
	"context"
	"os"
	"time"

	tus "github.com/eventials/go-tus"
)

// store is go-tus's memory of addresses: one upload, in a file, for a later process.
type store struct{ path string }

func (s store) Get(string) (string, bool) {
	url, err := recall(s.path)
	return url, err == nil
}

func (s store) Set(_, url string) { _ = remember(s.path, url) }
func (s store) Delete(string)     { _ = os.Remove(s.path) }
func (s store) Close()            {}

func withGoTus(ctx context.Context, wanted Case) (string, error) {
	file, err := os.Open(wanted.File)
	if err != nil {
		return "", err
	}
	defer file.Close()
	upload, err := tus.NewUploadFromFile(file)
	if err != nil {
		return "", err
	}
	upload.Metadata = wanted.Metadata

	config := tus.DefaultConfig()
	config.OverridePatchMethod = wanted.Override
	config.ChunkSize = wanted.ChunkSize
	if config.ChunkSize == 0 {
		config.ChunkSize = upload.Size() + 1 // it always sends in chunks: make it one
	}
	if wanted.Store != "" {
		config.Resume = true
		config.Store = store{wanted.Store}
	}
	client, err := tus.NewClient(wanted.Endpoint, config)
	if err != nil {
		return "", err
	}
	var uploader *tus.Uploader
	if wanted.Resume {
		uploader, err = client.ResumeUpload(upload)
	} else {
		uploader, err = client.CreateUpload(upload)
	}
	if err != nil {
		return "", err
	}
	url := uploader.Url()
	for attempt := 0; ; attempt++ {
		if wanted.StopAt > 0 {
			for err = nil; err == nil && uploader.Offset() < wanted.StopAt; {
				err = uploader.UploadChunck()
			}
			uploader.Abort()
			return url, err
		}
		if err == nil {
			err = uploader.Upload()
		}
		if err == nil || ctx.Err() != nil || !wanted.Retry || attempt == attempts {
			return url, err
		}
		if attempt > 0 {
			time.Sleep(pause)
		}
		var resumed *tus.Uploader
		if resumed, err = client.ResumeUpload(upload); err == nil {
			uploader = resumed
		}
	}
}
