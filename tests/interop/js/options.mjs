// What a case asks for, in tus-js-client's words. Node and the browser share it.

// Retry at once, then often: the tests cut lines and restart servers, and wait for nobody.
const RETRIES = [0, ...Array(80).fill(150)]

export function tusOptions(wanted) {
  return {
    endpoint: wanted.endpoint,
    metadata: wanted.metadata ?? {},
    chunkSize: wanted.chunk_size ?? Number.POSITIVE_INFINITY,
    parallelUploads: wanted.parallel ?? 1,
    uploadLengthDeferred: wanted.deferred ?? false,
    uploadDataDuringCreation: wanted.with_creation ?? false,
    overridePatchMethod: wanted.override ?? false,
    retryDelays: wanted.retry ? RETRIES : null,
  }
}
