package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"kthwd/test/kthwtest"
)

const (
	secretPrefix  = "bench-"
	secretWriters = 8
	apiClients    = 8
	requestEvery  = 5 * time.Millisecond
	quietTime     = 10 * time.Second
)

// encryptionTurn is one rotation.
type encryptionTurn struct {
	Secrets   int     `json:"secrets"`
	PerSecond float64 `json:"secretsPerSecond"` // from the first that is written anew to the last
	Quiet     float64 `json:"quietP99Ms"`       // of a request to the API, before
	Busy      float64 `json:"rewriteP99Ms"`     // while secrets are written anew
	Requests  int     `json:"rewriteRequests"`
	Whole     float64 `json:"rotationSeconds"` // with the pause of the proof
}

// TestEncryption rotates the encryption key of many secrets while the API is used: make
// bench-encryption. A target that is missed is reported and fails nothing.
func TestEncryption(t *testing.T) {
	if os.Getenv("KTHWD_BENCH_ENCRYPTION") == "" {
		t.Skip("a benchmark of minutes: make bench-encryption, or KTHWD_BENCH_ENCRYPTION=1")
	}
	secrets, rounds := number(t, "KTHWD_BENCH_SECRETS", 10_000), number(t, "KTHWD_BENCH_ROUNDS", 3)
	b := &bench{settings: readSettings(t)}
	c := kthwtest.Start(t, kthwtest.Options{Args: []string{"--kube-apiserver-arg=request-timeout=10s"}})
	c.WaitReady(t)
	config := c.RESTConfig(t)
	config.QPS, config.Burst = -1, -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	fillSecrets(t, client, secrets)
	var all []encryptionTurn
	for range rounds {
		b.awaitQuiet(t)
		m := encryptionTurn{Secrets: secrets}
		m.Quiet, _ = requestsWhile(t, client, func() (from, to time.Time) {
			from = time.Now()
			time.Sleep(quietTime)
			return from, time.Now()
		})
		begun := time.Now()
		m.Busy, m.Requests = requestsWhile(t, client, func() (from, to time.Time) {
			from, to = rotateSecrets(t, c, secrets)
			m.PerSecond = float64(secrets) / to.Sub(from).Seconds()
			return from, to
		})
		m.Whole = time.Since(begun).Seconds()
		all = append(all, m)
	}
	writeEncryption(t, all)
}

func fillSecrets(t *testing.T, client kubernetes.Interface, n int) {
	t.Helper()
	numbers := make(chan int)
	var writers sync.WaitGroup
	for range secretWriters {
		writers.Go(func() {
			for i := range numbers {
				s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(secretPrefix, i)}, StringData: map[string]string{"n": strings.Repeat("x", 1000)}}
				if _, err := client.CoreV1().Secrets("default").Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
					t.Errorf("secret %d: %v", i, err)
				}
			}
		})
	}
	for i := 0; i < n && !t.Failed(); i++ {
		numbers <- i
	}
	close(numbers)
	writers.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// request is one to the API.
type request struct {
	began time.Time
	took  time.Duration
}

// requestsWhile has clients read and update a ConfigMap each while do runs, and returns the p99, in
// milliseconds, and the number of the requests that began in the time that do returns.
func requestsWhile(t *testing.T, client kubernetes.Interface, do func() (from, to time.Time)) (p99 float64, n int) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var done sync.WaitGroup
	all := make([][]request, apiClients)
	for i := range all {
		done.Go(func() { all[i] = keepRequesting(ctx, t, client, fmt.Sprint(secretPrefix, i)) })
	}
	from, to := do()
	stop()
	done.Wait()
	var latencies []time.Duration
	for _, r := range slices.Concat(all...) {
		if !r.began.Before(from) && r.began.Before(to) {
			latencies = append(latencies, r.took)
		}
	}
	if t.Failed() || len(latencies) == 0 {
		t.Fatal("no request in that time, or one has failed")
	}
	slices.Sort(latencies)
	return float64(latencies[len(latencies)*99/100].Microseconds()) / 1000, len(latencies)
}

func keepRequesting(ctx context.Context, t *testing.T, client kubernetes.Interface, name string) (all []request) {
	maps := client.CoreV1().ConfigMaps("default")
	_, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		err = nil
	}
	for i := 0; err == nil && ctx.Err() == nil; i++ {
		var m *corev1.ConfigMap
		began := time.Now()
		m, err = maps.Get(t.Context(), name, metav1.GetOptions{})
		all = append(all, request{began, time.Since(began)})
		if err == nil {
			m.Data = map[string]string{"i": fmt.Sprint(i)}
			began = time.Now()
			_, err = maps.Update(t.Context(), m, metav1.UpdateOptions{})
			all = append(all, request{began, time.Since(began)})
		}
		wait(ctx, requestEvery)
	}
	if err != nil {
		t.Errorf("a request: %v", err)
	}
	return all
}

// rotateSecrets rotates the key, and returns when the first and the last secret were written anew.
func rotateSecrets(t *testing.T, c *kthwtest.Controller, n int) (first, last time.Time) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	watch := c.Etcd(t).Watch(ctx, "/registry/secrets/default/"+secretPrefix, clientv3.WithPrefix())
	ended := make(chan error, 1)
	go func() {
		out, err := exec.CommandContext(t.Context(), kthwtest.Binary(t), "encryption", "rotate", "--without-backup", "--config=", "--data-dir="+c.Dir).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		ended <- err
	}()
	seen := 0
	for seen < n {
		select {
		case answer := <-watch:
			if err := answer.Err(); err != nil {
				t.Fatal(err)
			}
			if last = time.Now(); seen == 0 {
				first = last
			}
			seen += len(answer.Events)
		case err := <-ended:
			if err != nil || seen < n {
				t.Fatalf("the rotation has ended after %d of %d secrets: %v", seen, n, err)
			}
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return first, last
}

// writeEncryption prints a table, and one line of JSON.
func writeEncryption(t *testing.T, all []encryptionTurn) {
	t.Helper()
	middle := func(value func(encryptionTurn) float64) float64 {
		var values []float64
		for _, m := range all {
			values = append(values, value(m))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	perSecond := middle(func(m encryptionTurn) float64 { return m.PerSecond })
	ratio := middle(func(m encryptionTurn) float64 { return m.Busy / m.Quiet })
	for _, m := range all {
		t.Logf("%d secrets: %.0f a second; p99 %.1f ms, quiet %.1f ms, of %d requests; the whole rotation %.1f s", m.Secrets, m.PerSecond, m.Busy, m.Quiet, m.Requests, m.Whole)
	}
	met := func(is bool) string {
		if is {
			return "met"
		}
		return "missed"
	}
	t.Logf("at least 1000 secrets a second: %s (%.0f)", met(perSecond >= 1000), perSecond)
	t.Logf("p99 at most twice the quiet one: %s (%.2f)", met(ratio <= 2), ratio)
	line, err := json.Marshal(map[string]any{"bench": "encryption", "turns": all, "secretsPerSecond": perSecond, "p99Ratio": ratio})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(string(line))
}
