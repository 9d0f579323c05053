package upstream

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"kthwd/appliance/logging"
)

// CatchStderr makes lines of the log of what is written to os.Stderr from now on: some
// of what is embedded has a logger of its own there, which nothing can set. Kubernetes'
// clients of etcd do so with JSON, some thousand lines when etcd is away for a
// while (apiserver/pkg/storage/storagebackend/factory/etcd3.go: etcd3ClientLogger).
//
// The file descriptor 2 stays as it is, and with it what the runtime says of a crash.
// Whoever wants to write there as before has a copy of *os.Stderr made before. It is for a main
// program, once, and lasts until the end of the process.
func CatchStderr(logs *logging.Logs) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	*os.Stderr = *w // in place: loggers have copied the pointer long ago
	go readStray(r, logs)
	return nil
}

// nameStray is the component of such lines that name none.
const nameStray = "stderr"

// readStray returns at the end of in.
func readStray(in io.Reader, logs *logging.Logs) {
	loggers := map[string]slog.Handler{}
	lines := bufio.NewReaderSize(in, logging.MaxLine)
	for {
		text, err := lines.ReadSlice('\n')
		if line := strings.TrimRight(string(text), "\r\n"); line != "" {
			component, r := strayLine(line)
			if loggers[component] == nil {
				loggers[component] = newQuiet(context.Background(), logs.Handler(component))
			}
			if h := loggers[component]; h.Enabled(context.Background(), r.Level) {
				_ = h.Handle(context.Background(), r) // there is nobody to tell
			}
		}
		if err != nil && err != bufio.ErrBufferFull { // what is longer goes on in the next line
			return
		}
	}
}

// zapLevels are what zap's JSON has for a level.
var zapLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn,
	"error": slog.LevelError, "dpanic": slog.LevelError, "panic": slog.LevelError, "fatal": slog.LevelError,
}

// strayLine reads what zap has made, and takes any other line as it is.
func strayLine(line string) (component string, r slog.Record) {
	var fields map[string]any
	if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &fields) != nil {
		return nameStray, slog.NewRecord(time.Now(), slog.LevelWarn, line, 0)
	}
	take := func(key string) string {
		text, _ := fields[key].(string)
		delete(fields, key)
		return text
	}
	level, known := zapLevels[take("level")]
	message := take("msg")
	if !known || message == "" {
		return nameStray, slog.NewRecord(time.Now(), slog.LevelWarn, line, 0)
	}
	if component = take("logger"); component == "" {
		component = nameStray
	}
	take("ts")
	take("caller")
	r = slog.NewRecord(time.Now(), level, message, 0)
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		r.AddAttrs(slog.Any(key, fields[key]))
	}
	return component, r
}
