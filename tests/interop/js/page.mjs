// The page that runs in the browser: tus-js-client and Uppy, each on the file of the input field.
// Its origin is not the server's, so every request is a cross-origin one.

import Uppy from '@uppy/core'
import Tus from '@uppy/tus'
import * as tus from 'tus-js-client'
import { tusOptions } from './options.mjs'

let stop = null

async function withTus(wanted, file) {
  // A reader has no length: the client has to send it without knowing.
  const source = wanted.deferred ? file.stream().getReader() : file
  return new Promise((resolve, reject) => {
    const upload = new tus.Upload(source, {
      ...tusOptions(wanted),
      onSuccess: () => resolve({ url: upload.url }),
      onError: (error) => resolve({ url: upload.url, error: String(error) }),
    })
    stop = async (terminate) => {
      await upload.abort(terminate)
      resolve({ url: upload.url, aborted: true })
    }
    const ready = wanted.resume
      ? upload.findPreviousUploads().then((previous) => {
          if (previous.length !== 1) throw new Error(`${previous.length} previous uploads known`)
          upload.resumeFromPreviousUpload(previous[0])
        })
      : Promise.resolve()
    ready.then(() => upload.start()).catch(reject)
  })
}

async function withUppy(wanted, file) {
  const { metadata, ...options } = tusOptions(wanted)
  const uppy = new Uppy({ autoProceed: false })
  uppy.use(Tus, options)
  const id = uppy.addFile({ name: file.name, type: file.type, data: file, meta: metadata })
  const url = () => uppy.getFile(id)?.tus?.uploadUrl ?? null
  return new Promise((resolve, reject) => {
    stop = async (terminate) => {
      const known = url()
      if (terminate) uppy.cancelAll()
      else uppy.pauseAll()
      resolve({ url: known, aborted: true })
    }
    uppy.upload().then(({ successful, failed }) => {
      if (failed?.length) resolve({ url: url(), error: failed[0].error })
      else resolve({ url: successful?.[0]?.uploadURL ?? null })
    }, reject)
  })
}

window.runCase = (wanted) => {
  const file = document.querySelector('#file').files[0]
  return wanted.client === 'uppy' ? withUppy(wanted, file) : withTus(wanted, file)
}
window.abortCase = (terminate) => stop(terminate)
