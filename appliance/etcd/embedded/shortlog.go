package embedded

import "go.etcd.io/etcd/server/v3/storage/wal"

// shortSegment is room for a few thousand writes.
const shortSegment = 4 << 20

// ShortenLog makes etcd's log take 4 MiB at a time instead of 64, of which it keeps the next
// ones ready. It counts for the whole process; call it before Start, for data that does not
// last.
func ShortenLog() { wal.SegmentSizeBytes = shortSegment }
