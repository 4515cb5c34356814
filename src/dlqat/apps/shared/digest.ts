// SPDX-License-Identifier: Apache-2.0
// The files that dlqat-app.json names are the ones that were written, or they are not used.

export function refused(name: string, found: string, wanted: string): Error {
  return new Error(
    `${name} is not the file that dlqat-app.json names (sha256 ${found.slice(0, 12)}..., not ${wanted.slice(0, 12)}...); it was not used`,
  );
}
