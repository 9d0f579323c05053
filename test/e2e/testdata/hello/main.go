// Hello is the image of the e2e tests, all in one static file: without an
// argument it is the sandbox of a pod, which waits to be ended; "serve" is the
// workload; "say" is for kubectl exec.
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	done := make(chan os.Signal, 1)
	signal.Notify(done, syscall.SIGTERM, syscall.SIGINT)
	switch {
	case len(os.Args) > 1 && os.Args[1] == "say":
		fmt.Println(strings.Join(os.Args[2:], " "))
		return
	case len(os.Args) > 1 && os.Args[1] == "serve":
		go serve()
	}
	<-done
}

func serve() {
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		name, _ := os.Hostname()
		fmt.Fprintln(w, "hello from", name)
	})
	fmt.Println("hello, serving on 8080")
	if err := http.ListenAndServe(":8080", nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
