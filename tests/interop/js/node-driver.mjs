// tus-js-client in Node: one upload, as the case on stdin asks.

import { createReadStream } from 'node:fs'
import { PassThrough } from 'node:stream'
import tus from 'tus-js-client'
import { listen, say } from './lines.mjs'
import { tusOptions } from './options.mjs'

let upload = null

async function run(wanted) {
  const file = createReadStream(wanted.file)
  // A stream that isn't a file has no length: the client has to send it without knowing.
  const source = wanted.deferred ? file.pipe(new PassThrough()) : file
  const options = {
    ...tusOptions(wanted),
    onUploadUrlAvailable: () => say({ event: 'url', url: upload.url }),
    onSuccess: () => finish({ url: upload.url }),
    onError: (error) => finish({ url: upload.url, error: String(error) }),
  }
  if (wanted.store) options.urlStorage = new tus.FileUrlStorage(wanted.store)
  upload = new tus.Upload(source, options)
  if (wanted.resume) {
    const previous = await upload.findPreviousUploads()
    if (previous.length !== 1) throw new Error(`${previous.length} previous uploads are known`)
    upload.resumeFromPreviousUpload(previous[0])
  }
  upload.start()
}

async function abort(terminate) {
  await upload.abort(terminate)
  finish({ url: upload.url, aborted: true })
}

function finish(result) {
  say({ result })
  process.exit(0) // its pool of connections would keep it for a while
}

await listen(run, abort)
