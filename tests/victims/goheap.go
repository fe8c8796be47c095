// goheap: a Go program with a heap of known contents, which then waits.
//
// keepLarge holds 64 pieces of 1 MiB, keepSmall 200,000 of 64 bytes. What pprof says of its heap goes
// to the file that is its argument, as text.
package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
)

// The last argument may say `sparse`: then one sample stands for 64 KiB.
func init() {
	if len(os.Args) > 2 {
		runtime.MemProfileRate = 64 << 10
	}
}

var kept [][]byte

func inlined(size int) []byte { return make([]byte, size) }

//go:noinline
func keepLarge() {
	for i := 0; i < 64; i++ {
		kept = append(kept, inlined(1<<20))
	}
}

//go:noinline
func keepSmall() {
	for i := 0; i < 200000; i++ {
		kept = append(kept, make([]byte, 64))
	}
}

func main() {
	kept = make([][]byte, 0, 1<<18)
	keepLarge()
	keepSmall()
	runtime.GC() // twice: what pprof shows is as of the last but one
	runtime.GC()
	if len(os.Args) > 1 {
		file, err := os.Create(os.Args[1])
		if err != nil {
			panic(err)
		}
		pprof.Lookup("heap").WriteTo(file, 1)
		file.Close()
	}
	fmt.Println("ready")
	var line string
	fmt.Scanln(&line)
	runtime.KeepAlive(kept)
}
