// The drivers' side of the conversation: JSON, one value a line, wanted on stdin, told on stdout.

import { createInterface } from 'node:readline'

export const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`)

// Calls `onCase` for a case and `onAbort` for {"abort": true, "terminate": bool}, as they come.
export function listen(onCase, onAbort) {
  const lines = createInterface({ input: process.stdin })
  lines.on('line', (line) => {
    const message = JSON.parse(line)
    const handled = message.abort ? onAbort(message.terminate ?? false) : onCase(message)
    Promise.resolve(handled).catch((error) => say({ result: { error: String(error) } }))
  })
  return new Promise((resolve) => lines.on('close', resolve))
}
